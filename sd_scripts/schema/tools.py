"""Options of the scripts that work on pictures and model files.

Rules of these sections, beyond those of the trainers: an option with `flag=False` is a positional argument, in order
of the class; one without a default whose type allows no None must be given; aliases are further spellings of a flag.
"""

from .option import Is, option, section

OVERWRITE = "Write over files that are there already. Without it nothing is written if one is in the way."


@section("Resize images to resolution")
class ResizeImagesOptions:
    """Make smaller copies of a folder of pictures, one for each size asked for; smaller pictures keep their size."""

    src_img_folder: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    dst_img_folder: str = option(None, "Folder for the copies; it is made if missing.", kind="folder", flag=False)
    max_resolution: str = option(
        "512x512,384x384,256x256,128x128",
        "Sizes as width x height, separated by commas. A copy has at most as many pixels as its size.",
    )
    divisible_by: int = option(1, "Cut both sides to a multiple of this many pixels.", minimum=1, unit="pixels")
    interpolation: str = option(
        "area",
        "How pictures are made smaller: area averages, the others are sharper.",
        choices=("area", "cubic", "lanczos4"),
    )
    save_as_png: bool = option(False, "Save without loss as PNG, with transparency, instead of JPEG.")
    copy_associated_files: bool = option(
        False, "Copy files of the same name with another ending, such as captions, to every copy."
    )
    overwrite: bool = option(False, OVERWRITE)


@section("Canny")
class CannyOptions:
    """Draw the edges of a picture, as control picture for ControlNet. With a folder, of every picture in it."""

    input: str | None = option(None, "Picture, or folder of pictures.", kind="file")
    output: str | None = option(None, "File for the edges, or folder if the input is one.", kind="file")
    thres1: int = option(32, "Contrast from which an edge is followed on.", minimum=0)
    thres2: int = option(224, "Contrast from which an edge begins.", minimum=0)
    overwrite: bool = option(False, OVERWRITE)


@section("Detect face and rotate")
class DetectFaceOptions:
    """Find faces, write the pictures with the face's place in the name, and maybe turn, crop and resize them."""

    src_dir: str | None = option(None, "Folder with the pictures.", kind="folder")
    dst_dir: str | None = option(None, "Folder for the results; it is made if missing.", kind="folder")
    rotate: bool = option(False, "Turn the picture so that the face is upright.")
    resize_fit: bool = option(False, "Shrink or enlarge a crop until its shorter side fits crop_size, then cut.")
    resize_face_size: int | None = option(
        None, "Resize the picture so that the face is this wide, before cropping.", minimum=1, unit="pixels"
    )
    crop_size: str | None = option(None, "Cut to this size around the face, as width,height in pixels.")
    crop_ratio: str | None = option(None, "Cut to this many times the face, as width,height.")
    min_size: int | None = option(None, "Leave out faces smaller than this.", minimum=1, unit="pixels")
    max_size: int | None = option(None, "Leave out faces larger than this.", minimum=1, unit="pixels")
    multiple_faces: bool = option(False, "Write one picture for every face instead of the largest only.")
    debug: bool = option(False, "Draw the frame of the face into the picture.")
    overwrite: bool = option(False, OVERWRITE)


@section("Convert images to JPEG")
class ToJpegOptions:
    """Save the pictures of one kind in a folder as JPEG of high quality, beside the originals."""

    directory: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    in_ext: str = option("webp", "Ending of the pictures to convert.")
    quality: int = option(95, "JPEG quality; more makes larger files.", minimum=1, maximum=100)
    delete_originals: bool = option(False, "Delete a picture after its copy is complete.")
    overwrite: bool = option(False, OVERWRITE)


@section("Convert images to WebP")
class ToWebpOptions:
    """Save the pictures of one kind in a folder as WebP without loss, beside the originals."""

    directory: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    in_ext: str = option("webp", "Ending of the pictures to convert, such as png.")
    delete_originals: bool = option(False, "Delete a picture after its copy is complete.")
    overwrite: bool = option(False, OVERWRITE)


@section("Group images")
class GroupImagesOptions:
    """Sort pictures by shape into groups of equal size and crop every group to one shape, so that batches are full."""

    input_folder: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    output_folder: str = option(None, "Folder for the groups; it is made if missing.", kind="folder", flag=False)
    group_size: int = option(None, "Pictures in a group; the last group may be smaller.", minimum=1, step=1, flag=False)
    include_subfolders: bool = option(False, "Take the pictures of all folders below, too.")
    do_not_copy_other_files: bool = option(
        False,
        "Leave out files of the same name with another ending, such as captions.",
        label="Do not copy other files",
        aliases=("no_copy",),
    )
    pad: bool = option(
        False, "Fill up with black to the shape of the group instead of cropping.", label="Fill up instead of cropping"
    )
    caption: bool = option(
        False, "Write a caption for every picture: the words of its folder's name.", label="Generate captions"
    )
    caption_ext: str = option(".txt", "Ending of these captions.", label="Caption extension", when=Is("caption", True))
    overwrite: bool = option(False, OVERWRITE, label="Overwrite existing files")


@section("Recommended group size")
class GroupSizeOptions:
    """Say which group size, of a range, crops the least (or pads the least) when pictures are grouped by shape."""

    input_folder: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    min_group: int = option(None, "Smallest group size to try.", minimum=1, flag=False)
    max_group: int = option(None, "Largest group size to try.", minimum=1, flag=False)
    include_subfolders: bool = option(False, "Take the pictures of all folders below, too.")
    pad: bool = option(False, "Count what is filled up instead of what is cut off.")


@section("Crop images to buckets")
class CropBucketsOptions:
    """Sort pictures by shape into buckets of so many and crop every bucket to its mean shape."""

    input_dir: str = option(None, "Folder with the pictures.", kind="folder", flag=False)
    output_dir: str = option(None, "Folder for the crops; it is made if missing.", kind="folder", flag=False)
    batch_size: int = option(None, "Pictures in a bucket; the last bucket may be smaller.", minimum=1, flag=False)
    use_original_name: bool = option(False, "Keep the names instead of numbering by bucket.")
    overwrite: bool = option(False, OVERWRITE)


@section("Rename depth masks")
class RenameDepthMaskOptions:
    """Rename depth pictures `name-0000.png` of a video program to `name.mask`."""

    folder: str = option(None, "Folder with the files.", kind="folder", flag=False)
    overwrite: bool = option(False, OVERWRITE)


@section("Prepare presets")
class PreparePresetsOptions:
    """Take everything personal (folders, names, keys) out of saved settings, so that they can be shared as presets."""

    json_files: list[str] = option(
        None, "Settings files; * and ? stand for any letters.", kind="file", nargs="+", flag=False
    )


@section("Latent upscaler")
class LatentUpscalerOptions:
    """Double the size of pictures by a network that works on their latents."""

    vae_path: str | None = option(None, "VAE for encoding and decoding: a file, folder or hub name.", kind="model")
    weights: str | None = option(None, "The network, as a TorchScript file.", kind="file")
    image_pattern: str | None = option(None, "Pictures; * and ? stand for any letters.")
    output_dir: str = option(".", "Folder for the large pictures; it is made if missing.", kind="folder")
    batch_size: int = option(4, "Latents in one pass of the network.", minimum=1)
    vae_batch_size: int = option(1, "Pictures in one pass of the VAE.", minimum=1)
    debug: bool = option(False, "Save the picture enlarged by interpolation, too, to compare.")
    overwrite: bool = option(False, OVERWRITE)


@section("Cache latents")
class CacheLatentsOptions:
    """Encode all pictures of a training and keep the latents in files beside them."""

    sdxl: bool = option(False, "The model is Stable Diffusion XL.")
    skip_existing: bool = option(False, "Take files that are there as they are, without looking into them.")


@section("Cache text encoder outputs")
class CacheTextOptions:
    """Encode all captions of an SDXL training and keep the text encoders' outputs in files beside the pictures."""

    sdxl: bool = option(False, "The model is Stable Diffusion XL; other models have no such cache.")
    skip_existing: bool = option(False, "Take files that are there as they are, without looking into them.")
