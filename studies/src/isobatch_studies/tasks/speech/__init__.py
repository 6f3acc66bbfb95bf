"""Speech: synthetic or LibriSpeech utterances, log-mel features, a CTC transformer, pseudo-labels by the average."""

from isobatch_studies.tasks.speech.features import log_mel
from isobatch_studies.tasks.speech.metric import greedy, word_error_rate
from isobatch_studies.tasks.speech.utterances import Utterances

__all__ = ["Utterances", "greedy", "log_mel", "word_error_rate"]
