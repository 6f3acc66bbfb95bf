from rfdetr import RFDETRMedium

model = RFDETRMedium()

model.train(
    dataset_dir="data/coco",
    epochs=50,
    batch_size=8,      # per GPU
    grad_accum_steps=2,
    lr=1e-4,
    lr_encoder=1.5e-4,
    ema_decay=0.993,
    ema_tau=100,
    output_dir="out",
)
