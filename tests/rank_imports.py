"""What the server that forks `ranks` has loaded; no garbage is looked for in it, then or later."""

import gc

gc.disable()
import toy_split  # noqa: E402, F401
import toy_team  # noqa: E402, F401

gc.freeze()
gc.enable()
