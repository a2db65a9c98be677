"""The codecs that come with the toolkit, one file (or folder) each; `ttt.interfaces.Codec` says what a codec owes."""
