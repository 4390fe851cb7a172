"""Sphinx configuration; `xaiutils.companion.site.collect` writes the sources it reads."""

project = "Do local explanations tell the truth?"
extensions = ["myst_nb", "xaiutils.companion.site.mathml"]
smartquotes = False  # the authors' quotes are already the right ones

nb_execution_mode = "off"  # what is committed is shown
nb_render_markdown_format = "myst"  # tables of claims
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
myst_enable_extensions = ["attrs_inline", "dollarmath"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = project
html_context = {"default_mode": "auto"}
html_favicon = "static/icon.svg"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_extra_path = ["../../../build/site-source/extra"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_sidebars = {"**": []}  # eight pages fit in the bar on top
html_theme_options = {
    "footer_start": [],
    "footer_end": [],
    "header_links_before_dropdown": 8,
    "logo": {"text": "Local explanations"},  # leaves room for two buttons on a phone
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}
exclude_patterns = ["extra"]
