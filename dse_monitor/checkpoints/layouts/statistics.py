"""Mean and standard deviation that training codes normalise images with, of values in [0, 1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # SwAV's first number is another one, and VICRegL's, which follows it
