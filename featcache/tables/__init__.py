"""Reads tables: CSV with any separator and encoding, gzip, Excel; missing values, and keys.

Every table that featcache reads (manifests, labels, reports, metadata of collections) is read here, by one
set of rules.

    missing  words that stand for a missing value
    formats  file formats: CSV, gzip, Excel workbooks
    table    `read_table`: a table as texts, by line and column
    joining  matches the keys of a table with images
"""
