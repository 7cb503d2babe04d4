"""What must hold in the process that runs the tests before anything in it imports Ray."""

from __future__ import annotations

import os

from hypothesis import settings

# Ray reads these once, when it is imported. Some unit tests import Ray, and later in the same process integration tests
# join a platform's cluster: that driver must send its token, and look for 127.0.0.1 at the loopback address.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

# A slow machine fails no test: hypothesis would stop after 200 ms an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
