#!/usr/bin/env bash
# Sourced by the other scripts.

say() { # COMMAND: what DRY=1 does with it: prints it, quoted where a shell would read a word otherwise
  local word line='' plain='^[[:alnum:]@%+=:,./_-]+$'
  for word; do
    [[ $word =~ $plain ]] || word=$(printf '%q' "$word")
    line+="${line:+ }$word"
  done
  echo "$line"
}

known() { # LIST NAME...: ends the script if a name is not in the list
  local name
  for name in "${@:2}"; do
    [[ " $1 " == *" $name "* ]] || { echo "there is no part '$name'; choose of: $1" >&2 && exit 1; }
  done
}
