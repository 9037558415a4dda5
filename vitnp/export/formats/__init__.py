"""A finished run in the formats of other programs: COCO, YOLO, PASCAL VOC, LabelMe and Label Studio.

Each format is a folder of its own with the photographs beside the annotations, laid out as the program expects. To add
one, implement :class:`vitnp.export.writer.Writer` in a file of its own, on top of
:class:`vitnp.export.formats.folder.FormatFolder`, and add a row to :data:`vitnp.export.formats.table.FORMATS`.
"""
