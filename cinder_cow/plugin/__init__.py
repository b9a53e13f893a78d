# SPDX-License-Identifier: Apache-2.0
"""What a cinder-volume process loads; the only folder that imports cinder."""
