"""Tags by a WD14 tagger: `python sd_scripts/finetune/tag_images_by_wd14_tagger.py <pictures>`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sd_scripts.schema.caption_edit import with_words
from sd_scripts.schema.tools_captions import TaggerOptions
from sd_scripts.tools.common import Ticker, run, say

PROG = "tag_images_by_wd14_tagger.py"
OPTIONS = TaggerOptions


def work(options: TaggerOptions) -> None:
    """Tag the pictures that have no tags yet. Raises UserError."""
    import numpy as np

    from sd_scripts.finetune.captioning import pictures_to_describe, read_ahead, say_result
    from sd_scripts.finetune.tagger import Arrangement, Choice, Tagger, find_files, joined, prepare, replacements
    from sd_scripts.tools.files import beside, read_text, write_caption

    extension = options.caption_extention or options.caption_extension
    replace = options.overwrite or options.append_tags
    todo, left_out = pictures_to_describe(
        options.train_data_dir, extension, recursive=options.recursive, replace=replace
    )
    mark = options.caption_separator.strip() or options.caption_separator
    choice = Choice(
        options.thresh if options.general_threshold is None else options.general_threshold,
        options.thresh if options.character_threshold is None else options.character_threshold,
        frozenset(tag.strip() for tag in options.undesired_tags.split(mark)),
        options.remove_underscore,
        Arrangement(
            "last" if options.use_rating_tags_as_last_tag else "first" if options.use_rating_tags else "",
            options.character_tags_first,
            options.character_tag_expand,
            tuple(tag.strip() for tag in options.always_first_tags.split(mark) if tag.strip()),
            replacements(options.tag_replacement),
        ),
    )
    counts: Counter[str] = Counter()
    if todo:
        tagger = Tagger(*find_files(options.model_dir, options.repo_id, options.force_download))
        ticker, done = Ticker("tagged", len(todo)), 0
        for paths, images in read_ahead(todo, options.batch_size, options.max_data_loader_n_workers):
            found = tagger.certainties([prepare(np.asarray(image), tagger.side) for image in images])
            for path, row in zip(paths, found, strict=True):
                tags = choice.tags(row, tagger.tags)
                counts.update(tags)
                target = beside(path, extension)
                existing = (read_text(target) or "") if options.append_tags else ""
                text = joined(existing, tags, options.caption_separator)
                write_caption(target, with_words(options.prefix, text, options.postfix) + "\n")
                if options.debug:
                    say(f"{path} {tags}")
            done += len(paths)
            ticker.at(done)
    if options.frequency_tags:
        for tag, count in counts.most_common():
            say(f"{tag}: {count}")
    say_result(len(todo), left_out)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
