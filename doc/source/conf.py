# SPDX-License-Identifier: Apache-2.0
extensions = ['openstackdocstheme', 'oslo_config.sphinxconfiggen']
config_generator_config_file = '../../etc/cinder_cow/config-generator.conf'
sample_config_basename = '_static/cinder_cow'
project = 'cinder_cow'
copyright = 'The cinder_cow authors'
html_theme = 'openstackdocs'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
version = release = ''
html_last_updated_fmt = None
