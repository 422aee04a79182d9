"""A day on the bus: sites of your own, hooks that implement some of them, and no training at all.

$ python examples/timetable.py
"""

from eventrunner import Bus, Hook, connect_hook

DAY = ["before_breakfast", "after_breakfast", "before_lunch", "after_lunch", "before_dinner", "after_dinner"]


class RunningHook(Hook):
    def before_breakfast(self, day: "Day") -> None:
        print("before_breakfast: run for 30 minutes")

    def before_dinner(self, day: "Day") -> None:
        print("before_dinner: run for 60 minutes")

    def after_finish_work(self, day: "Day", are_you_busy: bool = False) -> None:
        print("after_finish_work: " + ("no time to run" if are_you_busy else "run for 10 hours"))


class WorkingHook(Hook):
    def before_breakfast(self, day: "Day") -> None:
        print("before_breakfast: read the news for 30 minutes")

    def after_breakfast(self, day: "Day") -> None:
        print("after_breakfast: work for 3 hours")

    def after_lunch(self, day: "Day") -> None:
        print("after_lunch: work for 3 hours")

    def after_dinner(self, day: "Day") -> None:
        print("after_dinner: work for 60 minutes")


class SleepingHook(Hook):
    priority = "HIGH"  # a nap goes before work, whoever was registered first

    def after_lunch(self, day: "Day") -> None:
        print("after_lunch: nap for 60 minutes")

    def after_finish_work(self, day: "Day") -> None:
        print("after_finish_work: wash and go to bed")


class Day:
    def __init__(self) -> None:
        self.bus = Bus(())
        for name in DAY:
            self.bus.site(name)
        self.bus.site("after_finish_work", payload=("are_you_busy",))

    def run(self) -> None:
        print("--- the day begins ---")
        for name in DAY:
            self.bus.find(name, name).emit(self)
        self.bus.after_finish_work.emit(self, are_you_busy=False)
        print("--- asleep ---")


if __name__ == "__main__":
    day = Day()
    for hook in (RunningHook(), WorkingHook(), SleepingHook()):
        connect_hook(day.bus, hook, sender=day)
    day.run()
