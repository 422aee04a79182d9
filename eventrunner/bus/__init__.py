"""Sites, receivers and the order in which they run; knows nothing of torch or of training.

``sites`` is the catalogue and ``priority`` the ranks; ``signature`` and ``options`` say what a receiver wants, of which
``connection`` is made, ``scope`` on which processes it runs. ``plan`` compiles an emission, ``emissions`` keeps what is
compiled, ``describe`` shows it; ``freeze`` hands it to a lane, ``ledger`` counts its cost. ``site`` is one signal (the
only importer of blinker) and ``bus`` all of them. Imports words and ``lanes``.
"""
