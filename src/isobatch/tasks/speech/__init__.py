"""Speech: synthetic or LibriSpeech utterances, log-mel features, a CTC transformer, pseudo-labels by the average."""

from isobatch.tasks.speech.features import log_mel
from isobatch.tasks.speech.metric import greedy, word_error_rate
from isobatch.tasks.speech.utterances import Utterances

__all__ = ["Utterances", "greedy", "log_mel", "word_error_rate"]
