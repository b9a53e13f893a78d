# SPDX-License-Identifier: Apache-2.0
"""Count the tests of a subunit stream; the last line is the one CI reads.

A skip is a failure in CI unless the machine cannot do the thing at all; the
reason of such a skip begins with "machine:".
"""

import os
import sys
from typing import Any

import subunit  # type: ignore[import-untyped]
import testtools

PASSED = {'success', 'xfail'}


def main() -> int:
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}

    def on_test(test: dict[str, Any]) -> None:
        outcomes[test['id']] = test['status']
        if test['status'] == 'skip':
            reason = test['details'].get('reason')
            reasons[test['id']] = reason.as_text() if reason else ''

    result = testtools.StreamToDict(on_test)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(sys.stdin.buffer).run(result)
    result.stopTestRun()

    for name, reason in sorted(reasons.items()):
        print(f'skipped: {name}: {reason}')
    passed = sum(status in PASSED for status in outcomes.values())
    skipped = len(reasons)
    failed = len(outcomes) - passed - skipped
    undue = [why for why in reasons.values() if not why.startswith('machine:')]
    print(f'tests: {passed} passed, {failed} failed, {skipped} skipped')
    return 1 if failed or not passed or (undue and os.environ.get('CI')) else 0


if __name__ == '__main__':
    sys.exit(main())
