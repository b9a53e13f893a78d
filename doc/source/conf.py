# SPDX-License-Identifier: Apache-2.0
extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
    'sphinx.ext.autodoc',
]
config_generator_config_file = '../../etc/cinder_cow/config-generator.conf'
sample_config_basename = '_static/cinder_cow'
project = 'cinder_cow'
copyright = 'The cinder_cow authors'
html_theme = 'openstackdocs'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
version = release = ''
html_last_updated_fmt = None
# Quotes and dashes of messages and options stay as they are printed.
smartquotes = False
