//! One line for each key: its name, its type, its default and its reader.
//!
//! From such lines `table!` makes the struct that the other modules see, its defaults, and the function that reads the
//! table of the file. `value` has the readers, `reader` the ways of reading: `value`, `list`, `table`, `optional_table`.

/// Defines a table of the file: `key: Type = default, way(reader);` for each key. Behind `required`, an example of a key that
/// must be there; behind `and`, the fields that have no key of their own.
macro_rules! table {
    (
        $(#[$about:meta])*
        $table:ident { $($(#[$doc:meta])* $key:ident: $kind:ty = $default:expr, $way:ident($($reader:expr),+) $(required $example:literal)?;)* }
        $(and { $($(#[$beside_doc:meta])* $beside:ident: $beside_kind:ty = $beside_default:expr;)* })?
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $table {
            $($(#[$doc])* pub $key: $kind,)*
            $($($(#[$beside_doc])* pub $beside: $beside_kind,)*)?
        }

        impl Default for $table {
            fn default() -> $table {
                $table { $($key: $default,)* $($($beside: $beside_default,)*)? }
            }
        }

        impl $table {
            /// Reads the keys of the table. A key with a problem is left at its default.
            pub(crate) fn read(&mut self, section: &mut Section<'_>) {
                $(
                    section.$way(stringify!($key), &mut self.$key, $($reader),+);
                    $(section.demand(stringify!($key), $example);)?
                )*
            }
        }
    };
}

pub(crate) use table;
