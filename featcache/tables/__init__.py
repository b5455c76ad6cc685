"""Tables that somebody else wrote: CSV in any dress, gzip, Excel; their missing values, and their keys.

Every table that featcache reads (manifests, labels, reports, metadata of collections) is read here, by one
set of rules.

    missing  words that stand for a missing value
    formats  the file of a table as records: CSV in any dress, gzip, an Excel workbook
    table    a table as texts, by line and column
    joining  whether the keys of a table are those of the images
"""
