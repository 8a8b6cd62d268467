"""What a person starts."""

import os

# Loader threads share the cores with torch's, which by default spin while they wait. Read by OpenMP
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
