"""What a database's schema is, as PostgreSQL's catalogues tell it: two of them can be compared."""

from __future__ import annotations

from tests.conftest import execute

# Each query answers with a name and what is to be said about the thing of that name. Not compared:
# the order of columns, and the names of the partitions' indexes and of NOT NULL constraints, on
# which nothing may rely.
QUERIES = {
    "schema": """
        SELECT nspname, (SELECT string_agg(a::text, ', ' ORDER BY a::text) FROM unnest(nspacl) a)
        FROM pg_namespace WHERE nspname = 'hookjetty'
    """,
    "relation": """
        SELECT relname, concat_ws('; ', relkind, relpersistence, relreplident,
            (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(reloptions) o),
            pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid), relrowsecurity,
            (SELECT string_agg(a::text, ', ' ORDER BY a::text)
             FROM unnest(coalesce(relacl, acldefault(
                 CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a))
        FROM pg_class WHERE relnamespace = 'hookjetty'::regnamespace AND relkind NOT IN ('i', 'I')
    """,
    "column": """
        SELECT attrelid::regclass || '.' || attname, concat_ws('; ',
            format_type(atttypid, atttypmod),
            CASE WHEN attnotnull THEN 'NOT NULL' END,
            'default ' || pg_get_expr(adbin, adrelid),
            'identity ' || nullif(attidentity::text, ''),
            'generated ' || nullif(attgenerated::text, ''),
            attstorage, attcompression, attcollation::regcollation, attstattarget, attacl)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'hookjetty'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'c')
          AND attnum > 0 AND NOT attisdropped
    """,
    "constraint": """
        SELECT conrelid::regclass || ': ' || CASE WHEN contype = 'p' THEN 'primary key'
                                                  ELSE conname END,
               concat_ws('; ', pg_get_constraintdef(oid), convalidated, conislocal, coninhcount)
        FROM pg_constraint WHERE connamespace = 'hookjetty'::regnamespace AND contype <> 'n'
    """,
    "index": """
        SELECT i.indrelid::regclass || ': ' || CASE
                   WHEN t.relispartition THEN coalesce(p.inhparent::regclass::text, 'its own')
                   ELSE c.relname END,
               concat_ws('; ', regexp_replace(pg_get_indexdef(c.oid), 'INDEX \\S+ ON', 'INDEX ON'),
                         i.indisvalid, i.indisready, i.indisprimary, i.indisclustered)
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_class t ON t.oid = i.indrelid
        LEFT JOIN pg_inherits p ON p.inhrelid = c.oid
        WHERE t.relnamespace = 'hookjetty'::regnamespace
    """,
    "function": """
        SELECT oid::regprocedure::text, concat_ws('; ', pg_get_functiondef(oid), proargnames,
            (SELECT string_agg(a::text, ', ' ORDER BY a::text)
             FROM unnest(coalesce(proacl, acldefault('f', proowner))) a))
        FROM pg_proc WHERE pronamespace = 'hookjetty'::regnamespace
    """,
    "view": """
        SELECT oid::regclass::text, pg_get_viewdef(oid)
        FROM pg_class WHERE relnamespace = 'hookjetty'::regnamespace AND relkind IN ('v', 'm')
    """,
    "sequence": """
        SELECT seqrelid::regclass::text, concat_ws('; ', seqtypid::regtype, seqstart, seqincrement,
            seqmin, seqmax, seqcache, seqcycle, d.refobjid::regclass::text || '.' || attname)
        FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid
        LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.refobjsubid > 0
        LEFT JOIN pg_attribute ON attrelid = d.refobjid AND attnum = d.refobjsubid
        WHERE relnamespace = 'hookjetty'::regnamespace
    """,
    "type": """
        SELECT oid::regtype::text, concat_ws('; ', typtype, format_type(typbasetype, typtypmod),
            (SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder) FROM pg_enum
             WHERE enumtypid = t.oid))
        FROM pg_type t WHERE typnamespace = 'hookjetty'::regnamespace AND typtype IN ('e', 'd', 'r')
    """,
    "trigger": """
        SELECT tgrelid::regclass || ': ' || tgname, pg_get_triggerdef(t.oid)
        FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
        WHERE relnamespace = 'hookjetty'::regnamespace AND NOT tgisinternal
    """,
    "statistics": """
        SELECT stxname, pg_get_statisticsobjdef(oid)
        FROM pg_statistic_ext WHERE stxnamespace = 'hookjetty'::regnamespace
    """,
}


def catalogue(url: str) -> dict[str, list[str]]:
    """Everything in the schema hookjetty, by kind and name."""
    found: dict[str, list[str]] = {}
    for kind, query in QUERIES.items():
        for name, definition in execute(url, query):
            found.setdefault(f"{kind} {name}", []).append(definition)
    return {name: sorted(map(str, definitions)) for name, definitions in sorted(found.items())}


def with_partitions_of(url: str, other: str) -> str:
    """Give a database all partitions that the other one has; returns its URL."""
    for (from_id,) in execute(other, "SELECT DISTINCT from_id FROM hookjetty.partitions"):
        execute(url, "SELECT hookjetty.make_partitions(hookjetty.id_time(%s), 0)", from_id)
    return url
