"""What is measured: each file is one benchmark of ``./reste benchmark``, or serves one."""
