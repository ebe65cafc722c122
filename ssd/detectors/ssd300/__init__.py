"""SSD300 on a ResNet, as NVIDIA's DALI example and DeepLearningExamples have it."""
