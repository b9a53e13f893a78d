# SPDX-License-Identifier: Apache-2.0
"""How Cinder has eventlet patch a process, in the releases before 29 too.

It is imported before all else.
"""

# mypy: disable-error-code="import-not-found,import-untyped,no-redef"
# ruff: noqa: TID251

try:
    from cinder.monkey_patch import is_patched
    from cinder.monkey_patch import patch
except ImportError:
    import eventlet

    def patch() -> None:
        """Do what the programs of those releases do as they begin."""
        eventlet.monkey_patch()
        import threading

        import __original_module_threading as original

        # Or threads are not found (https://bugs.launchpad.net/bugs/1863021).
        original.current_thread.__globals__['_active'] = vars(threading)[
            '_active'
        ]

    def is_patched() -> bool:
        return True


__all__ = ['is_patched', 'patch']
