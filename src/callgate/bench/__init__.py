# SPDX-License-Identifier: MIT
"""What `callgate bench` measures; docs/benchmarks.md says how, and what the figures mean."""
