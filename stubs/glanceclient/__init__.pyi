# Only what cinder_cow/glance.py calls of python-glanceclient.
from collections.abc import Mapping
from typing import Any

from keystoneauth1 import session as ksa_session

class _Images:
    def get(self, image_id: str) -> Mapping[str, Any]: ...
    def get_image_locations(self, image_id: str) -> list[dict[str, Any]]: ...

class _Client:
    images: _Images

def Client(
    version: str,
    *,
    session: ksa_session.Session,
    endpoint_override: str | None = ...,
    interface: str | list[str] | None = ...,
    region_name: str | None = ...,
) -> _Client: ...
