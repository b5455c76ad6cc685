"""The command line: parse, call one function, print. The only user of typer and rich, and the only one that prints.

Results go to stdout, everything else to stderr; with `--json` stdout holds one JSON object and nothing else. Library
modules are imported inside the commands, so that `featcache --help` answers at once.

    streams      stdout and stderr, which may fail
    options      what may be asked, and how it is read
    render       streams, names, tables, what is said of a pass
    results      what is said of a Run
    progress     signals and progress bars
    embedding    demo, embed
    heads        train-head
    fine_tuning  fine-tune, train
    exporting    export
    predicting   predict, bundle
    evaluating   evaluate
    inspecting   status, info, verify, backbones, doctor
    collections  manifest, check
    auditing     audit
    reporting    report
    main         `main`, the entry point
"""
