yolo detect train data=coco.yaml model=yolo11s.yaml epochs=500 batch=256 imgsz=640 optimizer=AdamW lr0=0.001 lrf=0.1 weight_decay=0.05 momentum=0.9 close_mosaic=15 nbs=64
