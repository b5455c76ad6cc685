"""The command line: parse, call one function, print. The only user of typer and rich, and the only one that prints.

Results go to stdout, everything else to stderr; with `--json` stdout holds one JSON object and nothing else. Library
modules are imported inside the commands, so that `featcache --help` answers at once.

    streams      stdout and stderr, which may fail
    options      options from the fields of specs
    groups       the options of each spec
    render       streams, names, tables, the results of a pass
    results      the results of a Run
    progress     signals and progress bars
    embedding    demo, embed
    training     train-head, fine-tune, train
    exporting    export, export-studies, export-onnx
    predicting   predict, bundle
    evaluating   evaluate
    inspecting   status, info, verify, backbones, doctor
    collections  manifest, check
    auditing     audit
    reporting    report
    main         `main`, the entry point
"""
