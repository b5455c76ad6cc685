"""`report`: one self-contained HTML page about one or more Runs, for a radiologist or a reviewer.

All metrics are read from the Run's record; nothing is trained or scored again. Figures and tables are also written as
PNG and CSV into a folder beside the page.

    checking    checks of a Run's record
    run_view    a Run row by row
    cam         class activation maps, and their overlay on images
    document    content as plain values: sections, tables, figures, cards, maps
    charts      charts of a Run
    page        content as HTML; the only user of Jinja2
    tables      data and model, performance, sweep, effect of fine-tuning
    external    an evaluation on external images
    comparison  several Runs
    materials   the store and the images of a Run
    projection  t-SNE or UMAP of the vectors
    gallery     example images
    decisions   confusion matrices, performance by class and subgroup
    report      the function `report`
"""
