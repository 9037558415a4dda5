"""Operations on binary masks: components, contours, polygons, run lengths, boxes, colors and overlays."""
