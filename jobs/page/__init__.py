"""The web page of a release: `sif-batch serve`. Needs the extra `page`.

thumbnails (small pictures, made once)  gallery (what all visitors share)  asking (a question, its answer)  routes (what
is served beside the page)  app (the script that Streamlit runs for each visitor), with grid.js and grid.css.
"""
