# SPDX-License-Identifier: MIT
"""`python -m callgate`."""

from callgate.cli import main

main()
