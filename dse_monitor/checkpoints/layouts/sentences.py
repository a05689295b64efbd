"""What several layouts say about themselves."""

TEACHER = "the paper and the authors' own evaluation read the teacher"
ONLINE = "the paper and the authors' own evaluation read the online network"
COUNTS_FROM_ZERO = "The number in the file name counts from zero and is one less than the finished epochs"
OVERWRITTEN = "The code keeps one file and overwrites it; only the stored epoch tells versions apart"
BACKBONE_ONLY = "A final resnet50.pth holds the bare backbone and no epoch; its 50 is not one"
