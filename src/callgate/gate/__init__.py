# SPDX-License-Identifier: MIT
"""The call ABI: layouts and codes, the vector table, frames and doorbells, watching."""
