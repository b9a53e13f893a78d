# SPDX-License-Identifier: Apache-2.0
"""Translation of messages a person reads; log messages are not translated."""

import oslo_i18n

_ = oslo_i18n.TranslatorFactory(domain='cinder_cow').primary
