"""Assignment of the tensors of a checkpoint to layers.

Names, shapes, recorded classes and configurations are compared to recognise LSTM, Linear and Conv1D layers; the result
lists their weight matrices. No weight is read.
"""
