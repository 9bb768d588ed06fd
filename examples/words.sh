#!/bin/sh
# The stages of words.toml: `words.sh count PAGES COUNTS` for one child, `words.sh top PAGES COUNTS` for all.
set -eu
pages=$2 counts=$3

case $1 in
count)
    index=$AWS_BATCH_JOB_ARRAY_INDEX size=$AWS_BATCH_JOB_ARRAY_SIZE n=0
    for page in "$pages"/*.md; do
        if [ $((n % size)) -eq "$index" ]; then cat "$page"; fi
        n=$((n + 1))
    done | tr -cs 'A-Za-z' '\n' | tr 'A-Z' 'a-z' | grep -v '^$' | sort | uniq -c >"$counts/$index"
    ;;
top)
    awk '{ n[$2] += $1; all += $1 } END { print all " words"; for (w in n) if (length(w) > 3) print n[w], w }' \
        "$counts"/[0-9]* | sort -k1,1nr -k2 | head -n 5
    ;;
esac
