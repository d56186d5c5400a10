# SPDX-License-Identifier: MIT
"""Where the guest runs and traps come from: one module for each backend, found by name.

`base.py` is the guide to writing one.
"""
