# SPDX-License-Identifier: Apache-2.0
"""What turns an image into a base."""
