"""`report`: Runs as one self-contained HTML page that a reader of images, or a reviewer, can open and send on.

It shows what was trained on what, every number with its interval, the curves, how decisions and probabilities hold up,
the images that went wrong, and where they lie among those that were learnt from. What is shown is what the Run
recorded: nothing is trained or scored again. Figures and tables are also written as PNG and CSV beside the page.

    checking    what a record has to say
    run_view    a Run, row by row
    pictures    images as the page shows them
    cam         where in an image a network looked
    document    what a page is made of: sections of words, tables and figures
    charts      figures
    page        blocks as HTML: the only user of Jinja2
    tables      what was trained on what, and how well
    external    a Run on a set from elsewhere
    comparison  several Runs beside each other
    materials   the store and the images of a Run, found again
    projection  where its images lie among each other
    gallery     its errors and successes
    decisions   its decisions, by class and by group
    report      `report`, the verb
"""
