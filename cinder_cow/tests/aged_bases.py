# SPDX-License-Identifier: Apache-2.0
"""Bases that were made long ago, for tests of what becomes of them."""

from typing import Any

from oslo_utils import units

from cinder_cow.drivers import bases


def make(driver, image_id, **changes):
    """Have a driver keep one of an image; return its name.

    :param changes: of its facts
    """
    key = bases.BaseKey(image_id, 'sha512:1')
    writer: Any = driver.begin_base(key, units.Mi)
    with writer:
        facts = bases.BaseFacts(key, 'i', 'raw', units.Mi, '', made_at=1)
        made = writer.publish(facts)
    driver.set_base_facts(made.name, **changes)
    return made.name
