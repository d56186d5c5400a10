# SPDX-License-Identifier: MIT
"""What is generated out of declarations: C headers and reference pages."""
