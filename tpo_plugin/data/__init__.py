"""Records, their media, and the batches made of them.

    records  reading and checking records          media    images and video clips
    dataset  a torch dataset over record files     collate  batches for a host
"""
