# SPDX-License-Identifier: MIT
"""The kernel's own interfaces where Python has none: raw, by the kernel's names, no policy."""
