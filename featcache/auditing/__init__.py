"""Quality checks of a store: duplicates, near duplicates, confounders, shortcuts, outliers and label issues.

Nothing is changed: the results are ranked tables for a person to review.

    suspects   outliers, near duplicates across the split, label issues
    confounds  variables, such as scanner or file format, that can be predicted from the vectors
    shortcuts  the label predicted from such variables alone
    results    the results as tables and JSON
    audit      the function `audit`
"""
