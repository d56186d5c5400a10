# SPDX-License-Identifier: MIT
"""What is generated out of declarations: C headers and reference pages."""

from callgate.generate.header import header
from callgate.generate.reference import reference

__all__ = ["header", "reference"]
