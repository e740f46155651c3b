#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::cli::file::fuzz_file(data));
