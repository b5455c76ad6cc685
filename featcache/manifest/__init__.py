"""Where images come from: a folder, a folder of classes, a CSV, or one file. Lists and names; opens no image, except
to see whether a file without a suffix is DICOM.

`image_id` is the path relative to the folder given, with `/` between its parts: the same base name in two folders is
two images. Names keep their bytes, also when they are not UTF-8 (surrogateescape). Files that are not images are
skipped and counted by reason, never silently.

    housekeeping  files of systems and servers, and our own
    listing       the files below a folder, and what is skipped
    columns       which columns of a table are what, and where its files are
    companions    masks and thumbnails that lie beside images
    layout        what folders mean: subsets and classes
    manifest      Manifest: images with their names and columns
    datasets      known collections of chest X-rays as manifests
    covid         COVID-19 collections, whose images have several findings
    survey        what the pixels of a set are: how deep, and whether they are pictures
    check         what a folder of images holds, before a pass
"""

from featcache.manifest.manifest import Manifest, outside

__all__ = ["Manifest", "outside"]
