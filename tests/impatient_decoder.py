"""A decoder process with a second of CPU time for any picture, to test what happens afterwards."""

from service.submission import decoder_process

decoder_process.READING_CPU_SECONDS = 1
decoder_process.CPU_SECONDS = 1
decoder_process.CPU_SECONDS_A_MEGAPIXEL = 0

if __name__ == "__main__":
    decoder_process.main()
