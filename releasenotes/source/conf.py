# SPDX-License-Identifier: Apache-2.0
extensions = ['openstackdocstheme', 'reno.sphinxext']
project = 'cinder_cow release notes'
copyright = 'The cinder_cow authors'
html_theme = 'openstackdocs'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
version = release = ''
html_last_updated_fmt = None
