from ultralytics import YOLO

if __name__ == "__main__":
    model = YOLO("yolov8n.pt")
    results = model.train(data="coco8.yaml", epochs=50, imgsz=640, batch=16, optimizer="SGD", lr0=0.01, lrf=0.01)
